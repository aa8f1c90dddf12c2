"""`evopress db`: where the store is, which schema it has, and how it gets to the newest."""

from __future__ import annotations

import typer

from evopress.cli.options import Json, Storage
from evopress.cli.output import print_json, storage_url

app = typer.Typer(help="Where the store is; bring its schema to the newest; check it.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def path(as_json: Json = False, storage: Storage = None) -> None:
    """Print the store's URL, without its password."""
    from evopress.api.errors import NotFound
    from evopress.store.database import describe, parse_url
    from evopress.store.migrate import revision

    url = storage_url(storage)
    shown = describe(parse_url(url))
    if not as_json:
        print(shown)
        return
    try:
        found = revision(url)
    except NotFound:
        print_json({"url": shown, "exists": False, "revision": None})
        return
    print_json({"url": shown, "exists": found is not None, "revision": found})


@app.command()
def upgrade(as_json: Json = False, storage: Storage = None) -> None:
    """Bring the schema to the newest revision; a missing store is created."""
    from evopress.store import upgrade as upgrade_store
    from evopress.store.database import describe, parse_url

    url = storage_url(storage)
    before, after = upgrade_store(url)
    shown = describe(parse_url(url))
    if as_json:
        print_json({"url": shown, "before": before, "revision": after, "changed": before != after})
    elif before == after:
        print(f"{shown} is at the newest revision, {after}")
    else:
        print(f"{shown}: {before or 'empty'} -> {after}")


@app.command()
def check(as_json: Json = False, storage: Storage = None) -> None:
    """Verify the whole store and print its schema revision."""
    from evopress.store import Store, revision

    url = storage_url(storage)
    with Store.open(url, create=False) as store:
        store.check()
        shown, studies = store.describe(), len(store.studies())
    found = revision(url)
    if as_json:
        print_json({"url": shown, "revision": found, "studies": studies, "ok": True})
    else:
        print(f"{shown} is sound, revision {found}, {studies} studies")
