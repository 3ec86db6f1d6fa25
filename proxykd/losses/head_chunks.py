"""How much of the head's logits is made at a time. Without torch, so that plans can read it."""

CHUNK_BYTES = {"cpu": 40 * 2**20, "cuda": 512 * 2**20}
"""Float32 logits of one chunk, by the kind of device.

On CPUs 213 tokens at vocabulary 49k, 69 at 152k: above 32 MiB, so that glibc maps each such block and returns it at
once; smaller ones stay in its heap.

On GPUs 1,046 tokens at 128k. By arithmetic, measured by nobody yet: a chunk reads the whole head, V H 2 bytes at 3.35
TB/s of an H100, for 2 n V H operations at about 700 TFLOP/s, so that below n = 210 it waits for memory: 81 tokens, the
CPU's chunk, take 2.6 times as long as their operations.
"""


def chunk_tokens(vocabulary: int, device: str) -> int:
    """Tokens of one chunk."""
    return max(1, CHUNK_BYTES.get(device, CHUNK_BYTES["cpu"]) // (4 * vocabulary))
