"""What is registered with Detectron2, and what is checked about a built model."""
