"""How the tensors of other projects' checkpoints are named: a file a project."""
