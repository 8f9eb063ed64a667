"""Links in, shards out: read a URL list, fetch politely, judge every byte string, commit tars one unit at a time."""
