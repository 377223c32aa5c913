"""Downloads files from http, https, s3 and gs addresses: resumed, limited in size, and kept in the storage."""
