-- include changes
-- An error, or empty; how long it stays in ms; names and tokens of claims.
if ARGV[3] == '' then return end_claims(5) end
settle(5)
end_claims(5, ARGV[3], ARGV[4])
