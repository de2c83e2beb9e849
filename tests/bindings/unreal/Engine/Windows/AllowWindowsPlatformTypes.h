// Makes Windows' names known. May be included several times.
