-- include slice
return slice(ARGV[1])
