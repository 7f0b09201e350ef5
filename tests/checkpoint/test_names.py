from hypothesis import given
from hypothesis import strategies as st

from scanner.checkpoint.names import printable


def test_ordinary_names_are_shown_as_they_are() -> None:
    assert printable("model.layers.3.self_attn.q_proj.weight") == "model.layers.3.self_attn.q_proj.weight"
    assert printable("Größe 模型") == "Größe 模型"


def test_terminal_escapes_and_bidi_overrides_lose_their_power() -> None:
    assert printable("a\x1b[31mred\x07\n") == "a\\x1b[31mred\\x07\\n"
    assert printable("evil\u202egnp.exe") == "evil\\u202egnp.exe"
    assert printable("half \udc80 pair") == "half \\udc80 pair"


@given(st.text(st.characters(), max_size=400))
def test_every_name_becomes_short_printable_and_encodable(name: str) -> None:
    shown = printable(name)
    assert len(shown) <= 200
    assert shown.isprintable()
    shown.encode()


def test_long_names_end_in_an_ellipsis() -> None:
    assert printable("x" * 200) == "x" * 200
    assert printable("x" * 201) == "x" * 199 + "…"
    assert printable("\x1b" * 200).endswith("…")
