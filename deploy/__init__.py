"""From an .onnx file to a verified, fast bundle. Needs no torch (export.py alone does, and only when it is called)."""

if __name__ == "deploy":
    from kerf.bare_names import stand_in

    stand_in(__name__)
