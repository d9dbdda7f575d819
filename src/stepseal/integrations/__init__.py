"""Ways in for trainers and frameworks of other projects; each file stands alone."""

from stepseal.integrations import _monarch as monarch
from stepseal.integrations import _ray as ray

__all__ = ["monarch", "ray"]
