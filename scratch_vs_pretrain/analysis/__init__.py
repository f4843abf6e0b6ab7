"""Evidence from run folders; imports neither torch nor Detectron2."""
