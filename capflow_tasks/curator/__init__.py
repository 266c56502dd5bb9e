"""NeMo Curator's captioning classes, under its names and signatures."""
