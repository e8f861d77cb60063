"""doomrooms: real game frames with exact cameras, from ViZDoom on our own procedural maps and textures."""
