"""Keep cut models: weights files, Hugging Face folders, checkpoints larger than memory."""

from surgeon.deploy.artefact import Saved, load, save
from surgeon.deploy.file import CutFiles, operate_file

__all__ = ["CutFiles", "Saved", "load", "operate_file", "save"]
