"""Labels of features and paid answers of language models, committed one by one."""
