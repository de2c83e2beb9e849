// Makes Windows' names unknown again. May be included several times.
