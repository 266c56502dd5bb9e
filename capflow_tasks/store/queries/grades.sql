-- Each combination of grades, as JSON text, with the number of captions that have it: of the chosen captions, or of
-- the first of each sample. Reads all scores.
SELECT domain, grades, count(*) AS count
FROM (
    -- The caption files hold the last judge's grades.
    SELECT DISTINCT ON (results.sample_id) samples.domain, results.data::text AS grades
    FROM results
    JOIN samples ON samples.id = results.sample_id
    WHERE samples.shard_id IN (SELECT id FROM shards WHERE run_id = :run_id)
      AND results.stage = 'score'
      AND results.candidate = CASE WHEN :of_first THEN 1 ELSE samples.candidate END
      AND json_typeof(results.data) = 'object'
    ORDER BY results.sample_id, results.position DESC, results.agent DESC
) AS judged
GROUP BY domain, grades
