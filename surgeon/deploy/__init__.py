"""Keep and ship a small model: weights files, folders of transformers, files that run elsewhere, large checkpoints."""

from surgeon.deploy.artefact import Saved, load, save
from surgeon.deploy.export import Exported, export
from surgeon.deploy.file import CutFiles, operate_file

__all__ = ["CutFiles", "Exported", "Saved", "export", "load", "operate_file", "save"]
