"""Maps of files, which are kept while the files are sent again."""
