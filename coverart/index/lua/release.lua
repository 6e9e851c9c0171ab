-- include changes
-- An error, or empty; how long it stays in ms; names and tokens of claims.
if ARGV[3] == '' then return end_claims(5) end
end_claims(5, true, ARGV[3], ARGV[4])
