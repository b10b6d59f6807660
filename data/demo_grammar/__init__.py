"""The grammar of the demo corpus: words, their inflection, clauses, and sentence patterns."""
