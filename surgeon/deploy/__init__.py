"""Ship a small model: files that run elsewhere."""

from surgeon.deploy.export import Exported, export

__all__ = ["Exported", "export"]
