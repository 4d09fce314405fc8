"""criterion"""
