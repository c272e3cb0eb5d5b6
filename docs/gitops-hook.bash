# Completion for gitops-hook(8) in bash: commands, flags, and the names of the checkouts under the root.
# shellcheck shell=bash

_gitops_hook() {
    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]} command='' word
    local settings='--root --state'
    local -A flags=(
        [serve]="$settings --control --webhook-secret-file --sync-script --listen --trusted-proxies --dashboard-listen
            --max-syncs --sync-timeout --clone --clone-url --token-file --api-url --report --public-url --notify --log-format \
            --fleet --etcd --etcd-ca-file --etcd-cert-file --etcd-key-file --etcd-password-file --fleet-host --fleet-labels"
        [status]="$settings --json"
        [runs]="$settings --json --delivery --failed --since --number"
        [logs]="$settings --follow"
        [sync]="$settings --json --all --audit --cancel"
        [config]="$settings --json --unset"
        [deploy]="$settings --json --commit --force --reason --until-push"
        [rollback]="$settings --json --reason --until-push"
        [pause]="$settings --reason --for"
        [resume]="$settings --json"
        [add]="$settings --branch --deploy --url --ssh-key --token-file --yes"
        [rename]="$settings --json"
        [remove]="$settings --token-file --api-url --keep-files --force --webhook"
        [send]="$settings --json --branch --timeout"
        [migrate]="$settings --unit --dry-run --undo --remove"
        [register]="$settings --token-file --api-url --json --org --all --url --dry-run --timeout"
        [unregister]="$settings --token-file --api-url --json --org --all --url --dry-run"
        [hooks]="$settings --token-file --api-url --json --org --all --url"
        [audit]="$settings --token-file --api-url --json --redeliver"
        [doctor]="$settings --json"
        [fleet]="$settings --json --fleet --etcd --etcd-ca-file --etcd-cert-file --etcd-key-file --etcd-password-file --fleet-host --fleet-labels \
            --commit --delete"
    )
    COMPREPLY=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        [[ $word && ${flags[$word]+known} ]] && command=$word && break
    done
    case $before in
        --root | --state) mapfile -t COMPREPLY < <(compgen -d -- "$current") && return ;;
        --webhook-secret-file | --token-file | --sync-script | --notify) mapfile -t COMPREPLY < <(compgen -f -- "$current") && return ;;
        --report) mapfile -t COMPREPLY < <(compgen -W 'status deployment' -- "$current") && return ;;
        --log-format) mapfile -t COMPREPLY < <(compgen -W 'text json' -- "$current") && return ;;
    esac
    if [[ ! $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${!flags[*]} --help --version" -- "$current")
    elif [[ $current == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "${flags[$command]} --help" -- "$current")
    elif [[ $command == @(status|runs|logs|sync|deploy|rollback|config|pause|resume|rename|remove|send|doctor|register|unregister|hooks|audit) ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$(_gitops_hook_repositories)" -- "$current")
    fi
}

# The names of the checkouts under the root: that of --root, of the environment, of the unit's settings, or the default.
_gitops_hook_repositories() {
    local root=${GITOPS_ROOT:-} line i checkout
    if [[ ! $root && -r /etc/gitops-hook/gitops-hook.env ]]; then
        while IFS= read -r line; do
            [[ $line == GITOPS_ROOT=* ]] && root=${line#*=}
        done </etc/gitops-hook/gitops-hook.env
    fi
    for ((i = 1; i < COMP_CWORD - 1; i++)); do
        [[ ${COMP_WORDS[i]} == --root ]] && root=${COMP_WORDS[i + 1]}
    done
    root=${root:-/srv/gitops}
    for checkout in "$root"/*/.git "$root"/*/*/.git; do
        [[ -e $checkout ]] || continue # a pattern that nothing matches
        checkout=${checkout#"$root"/}
        printf '%s\n' "${checkout%/.git}"
    done
}

complete -F _gitops_hook gitops-hook
