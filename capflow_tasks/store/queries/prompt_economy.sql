-- Prompt tokens computed, and the least possible, in the batches that finished last.
--
-- No table holds the length of the prefix (system line and media) that the calls of a sample share. The
-- estimate is the most tokens that any call of the sample with that model found cached: at most one block of
-- the cache (16 tokens) too few, and 0 where the cache is off. The least possible is this prefix once, and
-- the rest of each call. An agent without media is counted as if it had them. Answers that stand for many calls
-- (claims that are verified) or for none (text that a tool has read) are left out.
WITH calls AS (
    SELECT results.sample_id, results.prompt_tokens, results.cached_tokens,
           max(results.cached_tokens) OVER same_prefix AS shared,
           row_number() OVER same_prefix AS number
    FROM results
    JOIN samples ON samples.id = results.sample_id
    WHERE samples.batch_id IN (
        SELECT id
        FROM batches
        WHERE shard_id IN (SELECT id FROM shards WHERE run_id = :run_id) AND state = 'done'
        ORDER BY finished_at DESC
        LIMIT :batches
    ) AND results.agent <> 'verifier' AND results.model <> :text_reader
    WINDOW same_prefix AS (PARTITION BY results.sample_id, results.model)
)
SELECT count(DISTINCT sample_id) AS samples,
       coalesce(sum(prompt_tokens), 0)::bigint AS prompt,
       coalesce(sum(prompt_tokens - cached_tokens), 0)::bigint AS computed,
       coalesce(
           sum(prompt_tokens - least(prompt_tokens, shared)) + sum(shared) FILTER (WHERE number = 1), 0
       )::bigint AS minimum
FROM calls
