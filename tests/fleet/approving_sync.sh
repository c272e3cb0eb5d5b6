#!/bin/bash
# A sync script that knows gitops.approved and nothing else. A commit whose tree has the file `bad` fails to deploy.
# Each deploy leaves a line in the file `deploys` beside the hosts' folders: time, host, commit, and `begin` or `end`.
set -eu
host=$(basename "${GITOPS_ROOT%/root}")
deploys=${GITOPS_ROOT%/*/root}/deploys
cd "$GITOPS_ROOT/$GITOPS_REPOSITORY"
finish() {
    printf 'outcome=%s\nafter=%s\nmessage=%s\n' "$1" "$(git rev-parse HEAD)" "${3:-$1}" >"$GITOPS_RESULT"
    exit "$2"
}
note() { printf '%s %s %s %s\n' "$(date +%s.%N)" "$host" "$commit" "$1" >>"$deploys"; }
exec 9>.git/approving-sync.lock
flock 9
git fetch --quiet origin
tip=$(git rev-parse refs/remotes/origin/main)
commit=$(git config gitops.approved || echo "$tip")
if [[ $commit == hold || $(git rev-parse --verify --quiet refs/gitops/deployed) == "$commit" ]]; then
    [[ $(git rev-parse HEAD) == "$tip" && $commit != hold ]] && finish unchanged 0
    finish held 0
fi
git reset --quiet --hard "$commit"
note begin
sleep 0.2
note end
[[ ! -e bad ]] || finish deploy-failed 70 'the health check failed'
git update-ref refs/gitops/deployed "$commit"
[[ $commit == "$tip" ]] && finish updated 0
finish held 0
