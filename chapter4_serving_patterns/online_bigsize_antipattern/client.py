# Copied from chapter4_serving_patterns/web_single_pattern/client.py
