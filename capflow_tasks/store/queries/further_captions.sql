-- Captions that were written again: samples and tokens by candidate, with those of judges and refused answers.
-- Reads all results.
WITH answered AS (
    SELECT sample_id, candidate, prompt_tokens, cached_tokens, completion_tokens FROM results
    UNION ALL
    SELECT sample_id, candidate, prompt_tokens, cached_tokens, completion_tokens FROM refused_answers
    WHERE outcome <> 'forgotten'
)
SELECT answered.candidate,
       count(DISTINCT answered.sample_id) AS samples,
       sum(answered.prompt_tokens)::bigint AS prompt,
       sum(answered.cached_tokens)::bigint AS cached,
       sum(answered.completion_tokens)::bigint AS completion
FROM answered
JOIN samples ON samples.id = answered.sample_id
WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND answered.candidate > 1
GROUP BY answered.candidate
ORDER BY answered.candidate
