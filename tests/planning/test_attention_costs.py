"""Operations of attention kernels against sums over the blocks that they compute."""

import pytest

from transformer_jax.layers.attention_kernels import KERNELS
from transformer_jax.layers.kernel import Kernel
from transformer_jax.planning.attention_costs import kernel_products
from transformer_jax.planning.costs import read_work
from transformer_jax.planning.hlo import ArrayShape, read_arrays, read_program

ROWS, HEADS = 3, 4


def arrays(text: str) -> tuple[ArrayShape, ...]:
    return read_arrays(text.replace("R,H", f"{ROWS},{HEADS}"))


def visible(length: int, keys: int, block: int, first: int = 0) -> int:
    """Pairs in blocks of which a causal mask hides not all, of queries from ``first`` on."""
    starts = [(i, j) for i in range(first, first + length, block) for j in range(0, keys, block)]
    return sum(block * block for i, j in starts if j < i + block)


def test_a_forward_pass_over_small_heads_has_tokens_last() -> None:
    operands = arrays(
        "s8[1,1,1] s8[1,1,1] bf16[R,H,64,256] bf16[R,H,64,384] bf16[R,H,32,384] s32[3,256,128] s32[3,8,384]"
    )
    found = kernel_products("self_attention/splash_mha_fwd_segmented/pallas_call", operands, ())
    assert found == ("bf16", 2 * ROWS * HEADS * 256 * 384 * (64 + 32))


@pytest.mark.parametrize(
    ("name", "results", "blocks", "products"),
    [
        ("splash_mha_dkv_no_residuals", "bf16[3,2,4,1024,128] bf16[R,H,1024,128]", "s8[1,2,2]", 5),
        ("splash_mha_dkv_no_residuals", "bf16[R,H,1024,128] bf16[R,H,1024,128]", "s8[1,2,2]", 4),
        ("splash_mha_dq_no_residuals", "bf16[R,H,1024,128]", "s8[1,2,2]", 3),
    ],
)
def test_backward_passes_with_a_causal_mask(name: str, results: str, blocks: str, products: int) -> None:
    head = "bf16[R,H,1024,128] "
    operands = arrays(f"{blocks} {blocks} {head * 3} f32[R,H,8,1024] {head} f32[R,H,8,1024] s32[8,1024]")
    found = kernel_products(f"a/{name}/pallas_call", operands, arrays(results))
    assert found == ("bf16", products * 2 * ROWS * HEADS * visible(1024, 1024, 512) * 128)


def test_of_split_queries_the_last_have_the_most() -> None:
    operands = arrays("s8[1,2,4] s8[1,2,4] f32[R,H,512,128] f32[R,H,1024,128] f32[R,H,1024,128] s32[512,128]")
    found = kernel_products("a/splash_mha_fwd/pallas_call", operands, ())
    assert found == ("f32", 2 * 2 * ROWS * HEADS * visible(512, 1024, 256, first=512) * 128)


@pytest.mark.parametrize(
    ("kernel", "operands", "products"),
    [
        ("forward_kernel", "q s32[3,128] k v s32[3,192] s32[1]", 2),
        ("query_kernel", "q s32[3,128] g f32[R,H,128] f32[R,H,128] k v s32[3,192] s32[1]", 3),
        ("key_kernel", "k v s32[3,192] q s32[3,128] g f32[R,H,128] f32[R,H,128] s32[1]", 4),
    ],
)
def test_kernels_of_gpus(kernel: str, operands: str, products: int) -> None:
    sizes = {
        "q": "bf16[R,H,128,64]",
        "g": "bf16[R,H,128,64]",
        "k": "bf16[R,H,192,64]",
        "v": "bf16[R,H,192,64]",
    }
    found = arrays(" ".join(sizes.get(one, one) for one in operands.split()))
    full, causal = (
        kernel_products(f"a/{prefix}attention_{kernel}/pallas_call", found, ()) for prefix in ("", "causal_")
    )
    assert full == ("bf16", products * 2 * ROWS * HEADS * 128 * 192 * 64)
    assert causal == ("bf16", products * 2 * ROWS * HEADS * visible(128, 192, 64, first=64) * 64)


class Flat(Kernel):
    """A kernel from outside of the library, whose calls do one operation for each element."""

    NAME = "flat"
    PLATFORMS = frozenset({"gpu"})
    EXPRESSES = frozenset()

    def attend(self, query, key, value, *, mask, scale, interpret):
        raise NotImplementedError

    def read_call(self, op_name, operands, results):
        return (operands[0].dtype, operands[0].size) if "flat_kernel" in op_name else None


def test_a_kernel_that_was_added_reads_its_own_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_products("a/flat_kernel/pallas_call", arrays("f32[2,3]"), ()) is None
    monkeypatch.setitem(KERNELS, "flat", Flat())
    assert kernel_products("a/flat_kernel/pallas_call", arrays("f32[2,3]"), ()) == ("f32", 6)


def test_other_calls_are_not_known() -> None:
    assert kernel_products("a/attention_norm/dot", arrays("f32[2,2]"), ()) is None


def test_a_kernel_that_describes_itself_on_lines_of_its_own_is_read_whole() -> None:
    target = 'custom_call_target="tpu_custom_call"'
    text = f"""HloModule m, is_scheduled=true

ENTRY %main.1 (a: s8[1,1,1], q: bf16[3,4,64,128]) -> bf16[3,4,128,64] {{
  %a = s8[1,1,1] parameter(0)
  %q = bf16[3,4,64,128] parameter(1)
  ROOT %k = bf16[3,4,128,64] custom-call(%a, %q, %q, %q), {target}, frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 128}}"
}}}}, metadata={{op_name="a/splash_mha_fwd_no_residuals/pallas_call"}}
}}
"""
    (work,) = read_work(read_program(text))
    assert work.is_counted
    assert work.cost.product_flops == {"bf16": 2 * 2 * ROWS * HEADS * 128 * 128 * 64}
