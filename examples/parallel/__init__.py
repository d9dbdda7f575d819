"""One small training script per way to parallelise; each resumes exactly, and on other meshes."""
