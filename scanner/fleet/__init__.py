"""The fleet: nightly scans of new releases on the Hub within a budget, their digests, and scans of an earlier method again.

`scanner.fleet.nightly.run_night` is one night, `scanner.fleet.config.read_config` reads its configuration, and
`scanner.fleet.backfill.upgrade` brings old scans to the current method.
"""
