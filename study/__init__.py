"""The spine: study files, cells, manifests, the local engine and the command line."""
