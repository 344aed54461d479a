"""The verb prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runtime.errors import DataError, RequestError
from .console import print_json, say
from .options import Json
from .progress import progress


def prompts(
    output: Annotated[Path, typer.Option("-o", "--output", help="The .npz file to write.")],
    model: Annotated[
        str,
        typer.Option(
            help="The text encoder that was trained with the image encoder: open_clip/NAME/TAG, "
            "transformers/OWNER/NAME or a folder of it, FILE.onnx with its tokenizer beside it, or "
            "file.py:factory, which returns a function from texts to embeddings."
        ),
    ],
    names: Annotated[
        list[str] | None, typer.Argument(help="The classes: words, or whole sentences.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="A text file with one class a line.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help="A sentence with {} for the class, as 'a photo of a {}.'; repeat for several, "
            "which are averaged [default: the class alone]."
        ),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="Of open_clip: default (of the TAG), none (random), or a file.")
    ] = "default",
    as_json: Json = False,
) -> None:
    """Compute class embeddings of prompts, for CLIP and SigLIP."""
    from ..export.prompts import embed_prompts
    from ..export.text_encoder import load_text_encoder
    from ..runtime.prompts import check_names, write_prompts

    if output.suffix.lower() != ".npz":
        raise RequestError(f"prompts are written to a .npz file, not {output}")
    given = [*(names or []), *([] if file is None else _lines(file))]
    if not given:
        raise RequestError("no prompt was given: write the classes, or pass --file FILE")
    check_names(given)
    with progress("loading the text encoder", 2, as_json) as advance:
        encoder = load_text_encoder(model, weights)
        advance("embedding", 1)
        found = embed_prompts(encoder, given, template or ("{}",))
    write_prompts(output, found)
    count, length = found.embeddings.shape
    if as_json:
        print_json({"path": str(output), "names": list(found.names), "length": length})
        return
    say(f"saved as {output}: {count} prompts, embeddings of {length} numbers")
    say(f"next: whycam explain MODEL.onnx IMAGE --prompts {output}")


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is no text in UTF-8") from error
    return [line.strip() for line in lines if line.strip()]
