"""Keep and ship cut models: weights files, Hugging Face folders, checkpoints larger than memory, exported files."""

from surgeon.deploy.artefact import Saved, load, save
from surgeon.deploy.export import Exported, export
from surgeon.deploy.file import CutFiles, operate_file

__all__ = ["CutFiles", "Exported", "Saved", "export", "load", "operate_file", "save"]
