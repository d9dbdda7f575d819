"""Small trainers that declare the sharing of each component, one file per kind of trainer."""
