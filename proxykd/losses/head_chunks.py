"""How much of the head's logits is made at a time. Without torch, so that plans can read it."""

CHUNK_BYTES = {"cpu": 40 * 2**20, "cuda": 512 * 2**20}
"""Float32 logits of one chunk, by the kind of device.

On CPUs 213 tokens at vocabulary 49k, 69 at 152k: above 32 MiB, so that glibc maps each such block and returns it at
once; smaller ones stay in its heap.

On GPUs 1,046 tokens at 128k: on an H100 sizes from 640 MiB on gain next to nothing with a frozen head, and the CPU's
size takes 2.7 times as long (docs/performance.md).
"""


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens of one chunk."""
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocabulary))
