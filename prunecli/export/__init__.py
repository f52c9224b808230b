"""Model -> files: pruned safetensors, ONNX, a stand-alone loader. Whole files, or none at all."""
