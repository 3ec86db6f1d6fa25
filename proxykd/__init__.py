"""The method of Proxy-KD (Chen et al., arXiv 2401.07013), on torch alone: no ray, no vllm, no fastapi."""

__version__ = "0.1.0"
