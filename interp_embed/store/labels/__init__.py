"""Labels of features, and answers that were paid for, committed one by one."""
