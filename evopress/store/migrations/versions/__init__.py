"""One file a schema revision, in order. A released one is never edited; list a new one in `evopress.store.schema.REVISIONS`."""
