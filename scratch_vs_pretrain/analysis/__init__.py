"""From run folders to tables, figures, answers and reports, without torch or Detectron2."""

# The x axes of figures and what stands under them.
AXES = {
    "iterations": "iterations",
    "images": "images",
    "epochs": "epochs",
    "pixels": "pixels, those of pre-training included",
    "gpu-hours": "GPU hours",
}
# How a line shows its seeds.
BANDS = ("range", "std")
