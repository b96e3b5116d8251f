"""Keep cut models: weights files, Hugging Face folders, checkpoints larger than memory."""

from surgeon.deploy.file import CutFiles, operate_file

__all__ = ["CutFiles", "operate_file"]
