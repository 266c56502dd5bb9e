{{- define "capflow.name" -}}
{{- if contains "capflow" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-capflow" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "capflow.labels" -}}
app.kubernetes.io/name: capflow
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "capflow.selector" -}}
app.kubernetes.io/name: capflow
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "capflow.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "capflow.secret" -}}
{{ .Values.existingSecret | default (include "capflow.name" .) }}
{{- end }}

{{/* The URLs by reference, so that a pod's description shows no password. */}}
{{- define "capflow.urls" -}}
- name: CAPFLOW_DATABASE_URL
  valueFrom: {secretKeyRef: {name: {{ include "capflow.secret" . }}, key: CAPFLOW_DATABASE_URL}}
- name: CAPFLOW_BROKER_URL
  valueFrom: {secretKeyRef: {name: {{ include "capflow.secret" . }}, key: CAPFLOW_BROKER_URL}}
{{- end }}

{{- define "capflow.pod" -}}
automountServiceAccountToken: false
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "capflow.container" -}}
image: {{ include "capflow.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "capflow.mounts" -}}
- {name: scratch, mountPath: /tmp}
- {name: scratch, mountPath: /home/capflow}
{{- if .Values.caConfigMap }}
- {name: tls, mountPath: /tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "capflow.volumes" -}}
- {name: scratch, emptyDir: {}}
{{- with .Values.caConfigMap }}
- {name: tls, configMap: {name: {{ . }}}}
{{- end }}
{{- end }}

{{- define "capflow.source" -}}
{{- if .existingClaim -}}
persistentVolumeClaim: {claimName: {{ .existingClaim }}}
{{- else if .hostPath -}}
hostPath: {path: {{ .hostPath }}, type: Directory}
{{- else -}}
emptyDir: {}
{{- end }}
{{- end }}
