"""
The cache directory: where a file lies, how it comes and goes without ever being seen half.

A file is written under a temporary name, made durable and renamed. An image's name says whose it
is, its id and size; an alias is a relative symlink to it.

    layout              which thing has which path
    packed_names        the names in one folder as the index's bytes
    directory_lock      which processes use the directory
    atomic_files        files below the root: write, rename, remove
    orphans             unfinished files of processes that are gone
    symlinks            aliases on the disk
    image_store         what a file is, by its name and its first bytes
    disk_walk           reads everything that lies on the disk
"""
