"""Z-Image on small and large devices: which plan fits the memory, and diffusers' pipeline laid out by it."""
