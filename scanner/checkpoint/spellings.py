"""How people write models of the Hub: addresses from a browser, git remotes, folders of the cache, names without an owner."""

import re
from collections.abc import Sequence

from scanner.checkpoint.names import printable
from scanner.errors import CheckpointError

_GIT = re.compile(r"\A(?:git clone )?(?:ssh://)?git@(?:hf\.co|huggingface\.co)[:/]", re.IGNORECASE)
_HOST = re.compile(r"\A(?:git clone )?(?:https?://)?(?:www\.)?(?P<host>huggingface\.co|hf\.co)(?=/)", re.IGNORECASE)
_CACHE_FOLDER = re.compile(r"models--(?P<name>[\w.-]+)(?:/snapshots/(?P<commit>[0-9a-f]+))?/?", re.ASCII)
_COMMIT_PAGE = re.compile(r"https://huggingface\.co/(?P<model>[\w.-]+/[\w.-]+)/commits?/(?P<revision>[^?#]+)", re.ASCII)
# A scheme without its slashes, as some programs shorten it.
_SHORT_SCHEME = re.compile(r"\A(?:hf:(?=[\w-]+/)|file:(?=/(?!/)))", re.ASCII)
_AROUND = " \t\r\n<>\"'`"
_PAGE = re.compile(
    r"(?:datasets|spaces|models)/[\w.-]+/[\w.-]+(?:/.*)?|[\w.-]+/[\w.-]+/(?:tree|blob|resolve|raw)/.+",
    re.ASCII | re.DOTALL,
)
_FILE_AFTER_COLON = re.compile(r"(?P<model>[\w.-]+/[\w.-]+(?:@[^:]+)?):(?P<file>[^:]+)", re.ASCII)
_BACKSLASH = re.compile(r"[\w.-]+\\[\w.-]+", re.ASCII)
_SINGLE_PAGE = re.compile(
    r"(?P<start>https://huggingface\.co)/(?P<name>[\w.-]+)(?:/(?:tree|blob|resolve|raw)/(?P<rest>.+))?/?",
    re.ASCII | re.DOTALL,
)

_LEGACY_OWNERS = {
    "albert": "albert-base-v1 albert-base-v2 albert-large-v1 albert-large-v2 albert-xlarge-v1 albert-xlarge-v2 albert-xxlarge-v1 "
    "albert-xxlarge-v2",
    "distilbert": "distilbert-base-cased distilbert-base-cased-distilled-squad distilbert-base-german-cased "
    "distilbert-base-multilingual-cased distilbert-base-uncased distilbert-base-uncased-distilled-squad "
    "distilbert-base-uncased-finetuned-sst-2-english distilgpt2 distilroberta-base",
    "FacebookAI": "roberta-base roberta-large roberta-large-mnli xlm-clm-ende-1024 xlm-clm-enfr-1024 xlm-mlm-100-1280 "
    "xlm-mlm-17-1280 xlm-mlm-en-2048 xlm-mlm-ende-1024 xlm-mlm-enfr-1024 xlm-mlm-enro-1024 xlm-mlm-tlm-xnli15-1024 "
    "xlm-mlm-xnli15-1024 xlm-roberta-base xlm-roberta-large xlm-roberta-large-finetuned-conll02-dutch "
    "xlm-roberta-large-finetuned-conll02-spanish xlm-roberta-large-finetuned-conll03-english "
    "xlm-roberta-large-finetuned-conll03-german",
    "google-bert": "bert-base-cased bert-base-cased-finetuned-mrpc bert-base-chinese bert-base-german-cased "
    "bert-base-german-dbmdz-cased bert-base-german-dbmdz-uncased bert-base-multilingual-cased bert-base-multilingual-uncased "
    "bert-base-uncased bert-large-cased bert-large-cased-whole-word-masking "
    "bert-large-cased-whole-word-masking-finetuned-squad bert-large-uncased bert-large-uncased-whole-word-masking "
    "bert-large-uncased-whole-word-masking-finetuned-squad",
    "google-t5": "t5-11b t5-3b t5-base t5-large t5-small",
    "openai-community": "gpt2 gpt2-large gpt2-medium gpt2-xl openai-gpt roberta-base-openai-detector "
    "roberta-large-openai-detector",
    "Salesforce": "ctrl",
    "almanach": "camembert-base",
    "transfo-xl": "transfo-xl-wt103",
    "xlnet": "xlnet-base-cased xlnet-large-cased",
}
"""Models that were on the Hub before owners were: present owner -> names. The Hub redirects the old names to the new ones."""

_OWNER = {name: owner for owner, names in _LEGACY_OWNERS.items() for name in names.split()}


def hub_spelling(reference: str, suffixes: Sequence[str]) -> str:
    """Return what a reference that is no local path means in the usual spelling: `org/name...`, `hf://...` or an address.

    A reference with no other spelling is returned as it is, without the white space and quotes around it.

    Args:
        reference: what the user wrote.
        suffixes: endings of the names of weights files.

    Raises:
        CheckpointError: the spelling is not one of the Hub, but it is clear what to write instead.
    """
    text = _GIT.sub("https://huggingface.co/", reference.strip(_AROUND), count=1)
    text = _HOST.sub("https://huggingface.co", text, count=1)
    text = _SHORT_SCHEME.sub(lambda found: f"{found[0]}//", text)
    if cached := _CACHE_FOLDER.fullmatch(text):
        return "hf://" + cached["name"].replace("--", "/", 1) + (f"@{cached['commit']}" if cached["commit"] else "")
    if page := _COMMIT_PAGE.fullmatch(text):
        return f"hf://{page['model']}@{page['revision']}"
    if _FILE_AFTER_COLON.fullmatch(named := text.removeprefix("https://huggingface.co/")):
        text = named
    if "://" not in text:
        if not text.startswith(("/", "./", "../", "~")):
            # The query of an address, unless it is the name of a file.
            text = (text if text.endswith(tuple(suffixes)) else text.partition("?")[0]).rstrip("/")
        if _PAGE.fullmatch(text):
            text = f"https://huggingface.co/{text}"
        elif file := _FILE_AFTER_COLON.fullmatch(text):
            if not file["file"].endswith(tuple(suffixes)):
                raise CheckpointError(
                    f"{printable(reference)} does not exist on this machine, and on the Hub '{printable(file['file'])}' is not "
                    f"the name of a weights file: write {printable(file['model'])}/FILE with the whole name of the file"
                )
            text = f"{file['model']}/{file['file']}"
        elif _BACKSLASH.fullmatch(text):
            raise CheckpointError(
                f"{printable(reference)} does not exist on this machine: for the model on the Hub write "
                f"{text.replace(chr(92), '/')}"
            )
    single = _SINGLE_PAGE.fullmatch(text.partition("?")[0].partition("#")[0])
    if single and single["name"] in _OWNER:
        revision, _, path = (single["rest"] or "").rstrip("/").partition("/")
        text = f"hf://{single['name']}" + (f"@{revision}" if revision else "") + (f"/{path}" if path else "")
    # The address of a git remote.
    return (
        re.sub(r"\.git(?=$|[@?#])", "", text) if text.count("/") < 6 and not text.startswith(("/", ".", "~")) else text
    )


def present_name(name: str) -> str | None:
    """Return `owner/name` for a model that was on the Hub before owners were (`gpt2`), or None."""
    owner = _OWNER.get(name)
    return f"{owner}/{name}" if owner else None
