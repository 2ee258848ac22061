"""OmniPart: an image and its part masks to a 3D object made of parts (Yang et al. 2025). Importing this loads nothing."""
