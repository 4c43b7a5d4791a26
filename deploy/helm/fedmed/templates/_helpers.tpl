{{- define "fedmed.name" -}}
{{- printf "%s-%s" .root.Release.Name .role | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "fedmed.selector" -}}
app.kubernetes.io/name: fedmed
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end }}

{{- define "fedmed.labels" -}}
{{ include "fedmed.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "fedmed.image" -}}
{{- $image := .values.image -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository (default .root.Chart.AppVersion $image.tag) }}
{{- end -}}
{{- end }}

{{- define "fedmed.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "fedmed.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop:
    - ALL
{{- end }}

{{- define "fedmed.environment" -}}
- name: FEDMED_HOME
  value: /var/lib/fedmed
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
{{- range $name, $value := .environment }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{- define "fedmed.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "fedmed.homeClaim" -}}
{{- if not .values.storage.existingClaim }}
volumeClaimTemplates:
  - metadata:
      name: home
      labels:
        {{- include "fedmed.selector" . | nindent 8 }}
    spec:
      accessModes:
        - ReadWriteOnce
      {{- with .values.storage.storageClassName }}
      storageClassName: {{ . }}
      {{- end }}
      resources:
        requests:
          storage: {{ .values.storage.size }}
{{- end }}
{{- end }}

{{- define "fedmed.settings" -}}
name = {{ .consortium | toJson }}

[public]
host = "0.0.0.0"
port = {{ .ports.public }}
behind_proxy = {{ .behindProxy }}

[private]
port = {{ .ports.private }}

[health]
host = "0.0.0.0"
port = {{ .ports.health }}

[limits]
body_mb = {{ .bodyMb }}
skew_seconds = {{ .skewSeconds }}

[tracking]
uri = {{ .trackingUri | toJson }}
{{- end }}
