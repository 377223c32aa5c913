"""File names of a published model and stages of the network. Imports neither torch nor ray: `jobs` uses it too."""

MODEL_FILE = "model.safetensors"
HEAD_FILE = "head.json"
MANIFEST_FILE = "manifest.json"
CALIBRATION_FILE = "calibration.json"

BLOCKS_PER_STAGE = (1, 2, 2, 3, 3, 4, 1)  # of EfficientNet-B0; Tan & Le 2019, table 1, column "layers", rows 2 to 8
