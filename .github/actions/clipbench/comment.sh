# Usage: bash comment.sh FILE.md NUMBER. One comment of a pull request, found by its marker and updated in place.
# Where the token may not write (a fork's pull request), the file goes to the step summary.
set -euo pipefail
marker='<!-- clipbench -->'
body=$(mktemp)
{ echo "$marker"; cat "$1"; } > "$body"
comments="repos/$GITHUB_REPOSITORY/issues"
find="[.[] | select(.body | startswith(\"$marker\"))][0].id // empty"
if { id=$(gh api "$comments/$2/comments?per_page=100" --paginate --jq "$find" | head -n 1) &&
     if [ -n "$id" ]; then gh api --method PATCH "$comments/comments/$id" --field body=@"$body"
     else gh api --method POST "$comments/$2/comments" --field body=@"$body"; fi; } > /dev/null; then
  echo "commented on #$2"
else
  echo "the token may not comment on #$2: see the step summary"
  cat "$1" >> "$GITHUB_STEP_SUMMARY"
fi
