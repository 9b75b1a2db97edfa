"""RaML on Ray: LLM reasoning read, trained and measured as meta-learning (arXiv 2505.19815)."""

__version__ = "0.1.0"
