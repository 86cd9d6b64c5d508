"""Several runs on equal terms: one teacher, one budget, the same noise, one table.

Data flows one way: recipe -> plan -> train -> measure -> table -> page.
"""
